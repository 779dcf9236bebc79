"""What the data scripts are made of; nothing here is run by itself. A module imports only modules above it in a list.

Files of other programs, for import_dataset.py. In all of these modules `tables` is the DuckDB database, `table` the
file that is read, `rows` the name of the table with its rows, and `output` what the script makes: files that DuckDB or
Python cannot read as they are have a copy beside it for some time.

    text_files      text in a form that DuckDB reads: unpacked, in UTF-8, rewritten where it is necessary
    columns         files and their columns: how a file is read, the SQL of its columns, their usual names
    tables          tables larger than memory, by DuckDB, in a workspace that survives a killed run
    missing         what counts as a missing value and what as text
    delimited       CSV and other delimited text: delimiter, names of columns, rows
    formats         the formats: how they are recognised, and how a file is read
    times           times, numbers or dates, converted to seconds
    row_filter      the conditions of --keep
    history_column  files with the history of a user in one column
    text_columns    which columns describe an item
    splits          histories split into train.pkl and test.pkl and written
    interactions    interactions and items read, cleaned, numbered and filtered
    check           the check of a data set directory, --check

Every data set, from texts to what pre-training reads:

    hub             downloads from the Hugging Face Hub
    merging         histories and embeddings of several data sets under item ids that do not clash
    encoding        from item texts to embeddings
    codes           from embeddings to codes
"""
