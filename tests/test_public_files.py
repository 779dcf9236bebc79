"""import_dataset.py on files as they are published: without names of columns, cut into prefixes, with other dates."""

import json
import shlex
from pathlib import Path

import duckdb
import pytest

from data_processing import TextEncoder_batch, import_dataset
from data_processing.parts import encoding
from data_processing.parts.columns import Column, Table
from data_processing.parts.row_filter import parse_keep
from tests import test_import
from tests.conftest import dump
from tests.test_import import EVERYTHING, SMALL, item_names, made, write, write_small
from utils.errors import InputError

call, encoder, refuse = test_import.call, test_import.encoder, test_import.refuse  # fixtures

COMMAND = f"--interactions {{}} --items m.csv --output out {EVERYTHING} "


def named_lists(folder: str = "out") -> dict:
    """test.pkl with the names of the items."""
    names = item_names(folder)
    return {user: [names[item] for item in items] for user, items in made(folder)["test"].items()}


# Histories in one field

PREFIXES = "user_id:token\titem_id_list:token_seq\titem_id:token\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("i.inter", PREFIXES + "x\ta\tb\nx\ta b\tc\ny\td\ta\nx\ta b c\td\n"),
        ("i.inter", PREFIXES + "x\ta b c\td\nx\ta b\tc\nx\ta\tb\ny\td\ta\n"),  # the longest first
        ("i.inter", PREFIXES + "x\ta\tb\nx\ta b\tc\nx\tb c\td\ny\td\ta\n"),  # a window of two
        ("i.inter", PREFIXES + "x\ta b c\td\ny\td\ta\n"),  # one row each
        ("i.csv", "user,history,item\nx,\"['a', 'b', 'c']\",d\ny,[d],a\n"),
        ("i.csv", 'user,history,item\nx,"[""a"", ""\\u0062"", ""c""]",d\ny,[d],a\n'),
        ("i.csv", "user,history\nx,a|b|c|d\ny,d|a\n"),
        ("i.csv", 'user,history\nx,"a,b"\nx,"a,b,c,d"\ny,d a\n'),
        ("i.jsonl", '{"user": "x", "items": ["a", "b", "c", "d"]}\n{"user": "y", "items": ["d", "a"]}\n'),
        ("i.csv", "user,what,target\nx,[a b c],d\ny,d,a\n"),
    ],
)
def test_histories_in_one_field_are_read_whole(call, capsys, name, text):
    write_small("")
    write(name, text)
    flags = "--history_column what --item_column target item" if "what" in text else ""
    call(COMMAND.format(name) + flags)
    assert named_lists() == {"x": ["a", "b", "c", "d"], "y": ["d", "a"]}
    assert made()["train"] == {"x": [0, 1, 2]}
    told = capsys.readouterr().out
    assert "6 interactions of 2 users" in told
    assert "warning" not in told  # the lists say the order


def test_items_of_histories_that_are_none_are_left_out_and_told(call, capsys):
    write_small("")
    write("i.csv", "user,history,item\nx,\"['a', 'NaN', 'b', 'NULL']\",c\ny,a|b,d\n")
    call(COMMAND.format("i.csv"))
    assert named_lists() == {"x": ["a", "b", "c"], "y": ["a", "b", "d"]}
    assert "i.csv: 2 items of histories that are 'NULL', 'NaN' are left out" in capsys.readouterr().out


def test_histories_that_do_not_go_on_are_refused(refuse):
    write_small("")
    write("i.inter", PREFIXES + "y\ta\tb\nx\ta\tb\nx\ta c\td\nx\ta b a\tc\n")
    refuse(COMMAND.format("i.inter"), "i.inter, line 4, line 5:", "item_id_list", "one interaction a row")
    write("i.csv", "user,history,item\nx,\"['a', 'b]\",c\nx,a,b\n")
    refuse(COMMAND.format("i.csv"), "i.csv, line 2: the history (history) is no list of items")


def test_an_item_after_the_history_that_is_not_read_is_told(call, capsys):
    write_small("")
    write("i.csv", "user,history,next\nx,a|b,c\n")
    call(COMMAND.format("i.csv"))
    assert "came after a history. If it is in next" in capsys.readouterr().out.split("warning: ")[1]
    call(COMMAND.format("i.csv") + "--item_column next item")
    assert named_lists() == {"x": ["a", "b", "c"]}
    assert "warning" not in capsys.readouterr().out


def test_a_column_has_one_part(refuse):
    write_small("")
    write("i.csv", "user,items,time\nx,a,1\nx,b,2\n")
    refuse(SMALL, "line 3: the history (items)", "if this is one, name its item with --item_column")
    refuse(
        SMALL + "--history_column items --item_column items item", "'items' is named for the item and for the history"
    )


def test_lists_that_are_not_read_are_told(call, capsys):
    write_small("")
    write("i.csv", "user,item,other_list,purchase_history\nx,a,c d,12\nx,b,c d,12\n")
    call(COMMAND.format("i.csv"))
    assert "other_list, purchase_history" in capsys.readouterr().out.split("warning: ")[1]


# Files without names of columns


@pytest.mark.parametrize(
    "row", ["x,a,4,100", "1,10,4.5,978300760", "x,a", "x\ta\t2009-05-04T23:08:57Z", "1  10\t4 978300760", "1 10"]
)
def test_first_line_that_looks_like_data_is_no_names(refuse, row):
    write_small("")
    write("i.txt", f"{row}\n{row}\n")
    for flags in ("", "--user_column 1 --item_column 10"):
        refuse(COMMAND.format("i.txt") + flags, "i.txt: its first line looks like data", "--names user item")


@pytest.mark.parametrize("row", ["{},{},5,{}", "{}\t{}\t5\t{}", "{} {}  5 {} ", "{}::{}::5::{}", '"{}";"{}";"5";"{}"'])
def test_file_without_names_keeps_its_first_row(call, capsys, row):
    write("i.txt", "".join(row.format(*event.split(":")) + "\n" for event in ["1:7:30", "1:8:10", "2:7:20", "2:8:40"]))
    write("m.txt", "7,Pen,x\n8,Pencil,y\n")
    names = "--names user item rating time --item_names item title brand"
    call(f"--interactions i.txt --items m.txt --output out {EVERYTHING} {names}")
    assert named_lists() == {1: [8, 7], 2: [7, 8]}
    assert made()["item_text_dict"][0] == {"title": "Pen", "brand": "x"}
    assert "i.txt: user user, item item, time time" in capsys.readouterr().out


def test_names_that_do_not_fit(refuse, call):
    write_small("x:a:1 x:b:2")
    refuse(SMALL + "--names user item", "--names has 2 names, but", "i.csv", "3 columns (user, item, time)")
    refuse(SMALL + "--item_names item item", "two columns are called 'item'")
    refuse(SMALL + "--names user item time", "i.csv, line 1", "'time'")
    write("i.csv", "user,item\nx,a\nx,b\nuser,item\n")
    refuse(SMALL, "i.csv: 'item' is both the name of a column and an item", "--names")
    write("i.csv", "user,item\nx,a\nx,b\n")
    write("m.csv", "a,Blue pen\nb,Pencil\n")
    refuse(SMALL, "no column has a usual name for the item", "--item_names")
    refuse(SMALL + "--item_column item a", "m.csv: 'a' is both the name of a column and an item", "--item_names")
    write("i.jsonl", '{"user": "x", "item": "a"}\n')
    refuse(SMALL.replace("i.csv", "i.jsonl") + "--names user item", "--names", "i.jsonl", "jsonl")


# Usual names, and names that differ by what nobody sees


@pytest.mark.parametrize(
    ("names", "time"),
    [
        ("Customer ID,StockCode,Invoice Date", "Invoice Date"),
        ("CUSTOMER_ID,stock code,order date", "order date"),
        ("User-ID,ISBN,Purchase-Date", "Purchase-Date"),
        ("username,Product Code,orderDate", "orderDate"),
        ("user_id,item_id,Event Timestamp", "Event Timestamp"),
    ],
)
def test_usual_names_in_any_spelling(call, capsys, names, time):
    write_small("")
    write("i.csv", f"{names}\nx,a,2020-02-01\nx,b,2020-01-01\n")
    call(COMMAND.format("i.csv"))
    assert named_lists() == {"x": ["b", "a"]}
    assert f"time {time}\n" in capsys.readouterr().out


def test_a_better_name_wins(call):
    write_small("")
    write("i.csv", "user_id,username,asin,product,reviewTime,unixReviewTime\nx,X,a,A,9,1\nx,X,b,B,8,2\n")
    call(COMMAND.format("i.csv"))
    assert named_lists() == {"x": ["a", "b"]}


def test_no_time_is_a_warning(call, capsys):
    write_small("")
    write("i.csv", "user,item\nx,b\nx,a\n")
    call(COMMAND.format("i.csv"))
    told = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: "))
    assert "the order of its rows counts" in told
    assert "--time_column" in told


def test_names_that_differ_by_blanks_or_unicode_form_match(call, capsys):
    write("i.csv", " user , cafe\u0301,time\nx, a,1\nx ,e\u0301,2\nx,b\t,3\n")
    write("m.csv", "caf\u00e9 ,title\na,A\n\u00e9,E\nb,B\n")
    call(COMMAND.format("i.csv") + "--item_column caf\u00e9 --text_columns 'title '")
    assert named_lists() == {"x": ["a", "\u00e9", "b"]}
    told = capsys.readouterr().out
    assert "i.csv: 2 names of columns were read without outer blanks" in told
    assert "m.csv: 1 names of columns were read without outer blanks" in told
    assert "i.csv: names of items in 3 rows were read without outer blanks" in told
    assert "i.csv: names of users in 1 rows were read without outer blanks" in told


# Formats


def test_python_literals(call, refuse):
    write(
        "i.json",
        "{u'user': u'x', 'item': 'a', 'time': 1}\n\n{'user': \"x\", 'item': 'b', 'time': 2, 'more': (1, None)}\n",
    )
    write("m.json.gz", "{'asin': 'a', 'title': \"Anna's pen\", 'tags': ['x', True]}\n{'asin': 'b', 'title': 'é'}\n")
    command = f"--interactions i.json --items m.json.gz --output out {EVERYTHING} "
    call(command)
    assert named_lists() == {"x": ["a", "b"]}
    assert made()["item_text_dict"] == {0: {"title": "Anna's pen", "tags": ["x", True]}, 1: {"title": "é"}}
    bad = ("{'asin': __import__('os').system('touch hacked')}", "['a']", "{'asin': {'a'}}", "{'asin': 'b'", "-" * 99999)
    for line in (*bad, "{'asin': '\\ud83d'}", "{'asin': " + "1" * 5000 + "}", "{'asin': '" + "x" * (1 << 20) + "'}"):
        write("m.json.gz", "{'asin': 'a', 'title': 'A'}\n" + line + "\n")
        refuse(command, "m.json.gz, line 2: ", "Python literal")
    write("m.json.gz", "{'asin': 'a', 'title': 'A'}\n" + "{'asin'}\n" * 5)
    refuse(command, "m.json.gz, line 2, line 3, line 4 and 2 more: ")
    assert not Path("hacked").exists()


def test_json_arrays(call, refuse, capsys):
    write(
        "i.json", json.dumps([{"user": "x", "item": "a", "time": 2}, {"user": "x", "item": "b", "time": 1}], indent=1)
    )
    write("m.json", '\n[{"item": "a", "title": "A"}, {"item": "b", "more": ["B"]}]')
    command = SMALL.replace("i.csv", "i.json").replace("m.csv", "m.json")
    call(command)
    assert named_lists() == {"x": ["b", "a"]}
    assert made()["item_text_dict"] == {0: {"title": "A"}, 1: {"more": ["B"]}}
    write("m.json", '[{"item": "a", "title": "A"}, {"title": "B"}]')
    call(command)
    assert "m.json, element 2: no item (item: ''); 1 of 2 rows like this are left out" in capsys.readouterr().out
    write("m.json", '[{"item": "a", "title": "A"}, {"title": "B"')
    refuse(command, "m.json cannot be read as json", "Malformed JSON")
    write("m.json", "[1, 2]")
    refuse(command, "m.json", "no object with fields")


def test_backslash_escaped_quotes_latin_1_and_semicolons(call, refuse):
    write(
        "r.csv",
        '"User-ID";"ISBN";"Book-Rating"\r\n"276725";"034545104X";"0"\r\n"276725";"0155061224";"5"\r\n',
        "latin-1",
    )
    books = '"ISBN";"Title";"Author"\r\n"034545104X";"The \\"J. Peterman\\"; caf\xe9 \\\\";"J"\r\n'
    books += '"0155061224";"B";"\\"K\\""\r\n'
    write("b.csv", books, "latin-1")
    command = f"--interactions r.csv --items b.csv --output out {EVERYTHING} --encoding latin-1"
    call(command)
    assert named_lists() == {276725: ["034545104X", "0155061224"]}
    assert made()["item_text_dict"][0] == {"Title": 'The "J. Peterman"; café \\', "Author": "J"}
    assert made()["item_text_dict"][1]["Author"] == '"K"'
    write("b.csv", '"ISBN";"Title"\n"034545104X";"""B"" \\"\n"0155061224";"C"\n')  # doubled: \ is a character
    call(command)
    assert made()["item_text_dict"][0] == {"Title": '"B" \\'}


def test_fields_that_only_later_rows_have(call):
    write_small("x:a:1 x:b:2")
    rows = [{"item": f"i{number}", "title": "T"} for number in range(1500)] + [{"item": "a", "late": "L"}]
    for name, text in (("m.json", json.dumps(rows)), ("m.jsonl", "\n".join(map(repr, rows)))):
        write(name, text)
        call(SMALL.replace("m.csv", name) + "--min_item_interactions 1")
        assert made()["item_text_dict"] == {0: {"late": "L"}}


def test_several_bad_lines_are_named_together(refuse):
    write_small("x:a:1 " + "x:b " * 2 + "x:a:2 x:b:c:4 x:b")
    refuse(SMALL, "i.csv, line 3, line 4, line 6 and 1 more: 2 columns, expected 3 (user, item, time)")
    write_small("x:a:1 x:b:May x:b:June x:a:2 x:b:July x:b:3 x:b:4 x:c:5 x:c:May")
    refuse(SMALL, "i.csv, line 3, line 4, line 6 and 1 more: the time (time) is 'May'")
    lines = ['{"user": "x", "item": "a"}'] * 1500
    for number in (1200, 1300, 1400, 1450):
        lines[number - 1] = "[" * (number % 3)
    write("i.jsonl", "\n".join(lines).replace("\n\n", "\n{}}\n"))
    refuse(SMALL.replace("i.csv", "i.jsonl"), "i.jsonl, line 1200, line 1300, line 1400 and 1 more: not valid JSON")


MIND = """1\tU1\t11/13/2019 9:05:58 PM\tN1 N2\tN3-0 N4-1\n2\tU1\t11/13/2019 9:05:58 AM\tN1 N2\tN3-1 N5-1 N4-0
3\tU2\t11/12/2019 9:00:00 AM\t\tN3-1\n4\tU2\t11/14/2019 9:00:00 AM\t\tN1-1 N4-0\n"""


def test_mind(call, capsys):
    for flags, names in (("", "behaviors.tsv news.tsv"), ("--format mind", "b.txt n.txt")):
        behaviors, news = names.split()
        write(behaviors, MIND)
        write(
            news,
            "".join(f'N{k}\tnews\tworld\tA "title" {k}\tabstract {k}\thttps://x/{k}\t[]\t[]\n' for k in range(1, 6)),
        )
        call(f"--interactions {behaviors} --items {news} --output out {EVERYTHING} {flags}")
        assert named_lists() == {"U1": ["N1", "N2", "N3", "N5", "N4"], "U2": ["N3", "N1"]}
        assert made()["test_times"]["U1"] == [1573635958] * 4 + [1573679158]
        text = {"category": "news", "subcategory": "world", "title": 'A "title" 1', "abstract": "abstract 1"}
        assert made()["item_text_dict"][0] == text
    write("behaviors.tsv", MIND + "5\tU1\t11/13/2019 9:06:00 PM\tN1 N3\tN3-0 N4-1\n")
    with pytest.raises(InputError, match="behaviors.tsv, line 5: the history"):
        call(f"--interactions behaviors.tsv --items news.tsv --output out {EVERYTHING}")


# --keep

ROWS = """user,item,rating,event,Event-Type,bought,long name
x,a,4,buy,1,true,1
x,b,3,buy,2,true,2
x,c,10,view,3,false,10
x,d,,view,4,true,20
"""


@pytest.mark.parametrize(
    ("expressions", "kept"),
    [
        ("'rating >= 4'", "ac"),
        ("'RATING < 9'", "ab"),
        ("\"event = 'buy'\"", "ab"),
        ("'\"Event-Type\" IN (1, 2, 3)' 'rating < 10'", "ab"),
        ("\"rating * 2 BETWEEN 6 AND 20 AND item <> 'a'\"", "bc"),
        ("\"lower(event) LIKE 'b%' OR NOT bought\"", "abc"),
        ("'\"long name\" < 3'", "ab"),
        ("'rating::INTEGER % 2 = 0'", "ac"),
        ("bought", "abd"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_keep(call, capsys, expressions, kept, kind):
    write_small("")
    write("i.csv", ROWS)
    duckdb.sql("SELECT * FROM read_csv('i.csv')").write_parquet("i.parquet")
    call(COMMAND.format(f"i.{kind}") + f"--keep {expressions}")
    assert named_lists() == {"x": list(kept)}
    assert f"i.{kind}: {4 - len(kept)} of 4 rows left out by --keep" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rating", "expression", "kept"),
    [
        ("4 NA 2 3", "rating >= 3", "ad"),
        ("2.5 N/A 2.6 3", "rating >= 3", "d"),
        ("76561198007712554 76561198007712555 76561198007712553 1", "rating <> '76561198007712555'", "acd"),
        ("1000000000000000000000 1000000000000000000001 2 NULL", "rating = '1000000000000000000001'", "b"),
        ("-1 1.5 1e3 nan", "rating > 1", "bc"),
    ],
)
def test_keep_reads_numbers_as_they_are(call, rating, expression, kept):
    """Words for nothing are no values, and long numbers, such as ids, are not rounded to one another."""
    rows = [f"{item},a,{value}\n{item},b,{value}" for item, value in zip("abcd", rating.split(), strict=True)]
    write("i.csv", "\n".join(["user,item,rating", *rows]))
    write("m.csv", "item,title\na,Pen\nb,Ink\n")
    call(COMMAND.format("i.csv") + f"--keep {shlex.quote(expression)}")
    assert list(named_lists()) == list(kept)


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("stars > 3", "no column 'stars'"),
        ("i.rating > 3", "no column 'i.rating'"),
        ("rating >", "syntax error"),
        ("1 = 1; DROP TABLE said", "statement"),
        ("rating > 3) OR (true", "syntax error"),
        ("rating > (SELECT 1)", "SUBQUERY"),
        ("EXISTS (SELECT * FROM read_text('m.csv'))", "SUBQUERY"),
        ("read_text('m.csv') = 'x'", "read_text"),
        ("random() < 0.5", "random"),
        ("nextval('x') = 1", "nextval"),
        ("sum(rating) > 3", "sum"),
        ("count(*) OVER () > 3", "WINDOW"),
        ("getenv('HOME') <> ''", "getenv"),
        ("*", "STAR"),
        ("rating > ?", "PARAMETER"),
        ("event > 3", "Cannot compare"),
        ("item", "Could not convert"),
        ("lower(rating, 3) = 3", "lower"),
        ("rating > 99", "none of 4 rows is left"),
        ("lpad(item, 2000000000, 'x') = ''", "lpad has no place"),
        ("printf('%1000000000d', 5) = ''", "printf has no place"),
    ],
)
def test_bad_keep(refuse, expression, said):
    write_small("")
    write("i.csv", ROWS)
    columns = "" if "none of" in said else "user, item, rating, event, Event-Type, bought, long name"
    refuse(f"{SMALL} --keep {shlex.quote(expression)}", f"--keep {expression}", said, columns)


def test_killed_run_goes_on(call, capsys, monkeypatch):
    write_small("")
    write("i.csv", "user,history,item,rating\nx,a,b ,4\nx,a b,c,5\ny,d,c,3\nz,d,a,9\n")
    command = COMMAND.format("i.csv") + "--keep 'rating > 3'"
    with monkeypatch.context() as killed:
        killed.setattr(import_dataset, "item_texts", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            call(command)
    first = capsys.readouterr().out
    call(command)
    assert named_lists() == {"x": ["a", "b", "c"], "z": ["d", "a"]}
    assert first in capsys.readouterr().out
    assert "1 of 4 rows left out by --keep" in first


# Times


@pytest.mark.parametrize(
    ("early", "late", "seconds", "told"),
    [
        ("11/11/2019 9:05:58 AM", "11/13/2019 1:05:58 PM", 1573463158, "month/day/year, as 11/13/2019 1:05:58 PM"),
        ("01/12/2010 08:26", "13/12/2010 08:26", 1291191960, "day/month/year, as 13/12/2010 08:26"),
        ("12/1/10 8:26", "12/13/10 8:26", 1291191960, "month/day/year"),
        ("1-12-2010", "31-12-2010", 1291161600, "day/month/year"),
        ("01.12.2010 08:26:00", "31.12.2010 8:26:00", 1291191960, "day/month/year"),
        ("Fri Aug 25 13:55:02 -0700 2017", "Sat Aug 26 13:55:02 +0000 2017", 1503694502, "dates in words"),
        ("Fri, 25 Aug 2017 20:55:02 GMT", "Sat, 26 Aug 2017 20:55:02 GMT", 1503694502, "dates in words"),
        ("Aug 25, 2017", "September 1, 2017", 1503619200, "dates in words"),
        ("2010-12-01 8:26:00 AM", "2010-12-01 1:26:00 PM", 1291191960, "dates with AM and PM"),
        ("20101201", "20101213", 1291161600, "dates of digits"),
    ],
)
def test_common_forms_of_time(call, capsys, early, late, seconds, told):
    write_small("")
    write("i.csv", f'user,item,time\nx,b,"{late}"\nx,a,"{early}"\n')
    call(SMALL)
    assert named_lists() == {"x": ["a", "b"]}
    assert made()["test_times"]["x"][0] == seconds
    assert told in capsys.readouterr().out


def test_ambiguous_dates_ask(call, refuse):
    write_small("")
    write("i.csv", "user,item,time\nx,b,02/01/2010 08:26\nx,a,01/02/2010 8:26\n")
    refuse(SMALL, "'02/01/2010 08:26'", "--time_format '%d/%m/%Y %H:%M'", "--time_format '%m/%d/%Y %H:%M'")
    call(SMALL + "--time_format '%d/%m/%Y %H:%M'")
    assert named_lists() == {"x": ["b", "a"]}
    call(SMALL + "--time_format '%m/%d/%Y %H:%M' %Y")
    assert named_lists() == {"x": ["a", "b"]}
    refuse(SMALL + "--time_format %d.%m.%Y", "i.csv, line 2, line 3: the time (time) is '02/01/2010 08:26'", "%d.%m.%Y")
    refuse(SMALL + "--time_format %Q", "argument --time_format: '%Q' is no form of times")
    refuse(SMALL + "--time_format %Y --time_column when", "no column 'when'")
    write("i.csv", "user,item,when\nx,b,2010\nx,a,2009\n")
    refuse(SMALL + "--time_format %Y", "--time_format: i.csv has no column for the time")
    call(SMALL + "--time_format %Y --time_column when")
    assert named_lists() == {"x": ["a", "b"]}
    write("i.csv", "user,item,time\nx,b,13/01/2010\nx,a,01/13/2010\n")
    refuse(SMALL, "i.csv, line 3: the time (time) is '01/13/2010', month/day/year, which most others are not")


# The encoder comes last


def test_what_needs_no_encoder_is_checked_first(refuse, call, monkeypatch, tmp_path):
    def not_yet(*_):
        raise InputError("the encoder was loaded")

    monkeypatch.setattr(encoding, "load_encoder", not_yet)
    write_small("x:a:1 x:b:May")
    refuse(SMALL, "line 3: the time (time) is 'May'")
    write_small("x:a:1 y:b:2")
    refuse(SMALL, "none of 2 users has a history and a target")
    write("i.csv", "user,item,time\nx,a,1\nx,b,2\n")
    refuse(SMALL, "the encoder was loaded")

    refuse(SMALL + "--encoder ./none", "--encoder ./none is not a directory")
    refuse(SMALL + "--encoder package:absent", "--encoder package:absent names no package", "pip install absent")
    refuse(SMALL + "--embeddings none.npy", "none.npy does not exist")
    assert not Path(".out.duckdb").exists()

    dump(Path("texts/item_text_dict.pkl"), {0: {"title": "A"}, -1: {}})
    with pytest.raises(InputError, match="item -1"):
        call("--input texts", TextEncoder_batch)


def test_keep_that_is_no_unicode_is_refused(tmp_path):
    table = Table(tmp_path, "csv", "utf-8", None, {"item": Column("c0", "to_json(c0)")}, ("item",))
    with pytest.raises(InputError, match="condition on the columns"):
        parse_keep("item = '\udcff'", table)


def test_one_wrong_date_of_digits_does_not_make_seconds_of_all(refuse):
    rows = [f"x,{'ab'[day % 2]},202301{day:02}" for day in range(1, 20)]
    write("m.csv", "item,title\na,A\nb,B\n")
    write("i.csv", "user,item,time\n" + "\n".join([*rows, "x,a,20231301"]) + "\n")
    refuse(SMALL, "i.csv, line 21: the time (time) is '20231301'", "a number, which most others are not")


def test_dates_that_are_words_are_no_times(refuse):
    write("m.csv", "item,title\na,Pen\nb,Ink\n")
    write("i.csv", "user,item,time\nx,a,31/12/2010\nx,b,infinity\nx,a,30/12/2010\n")
    refuse(COMMAND.format("i.csv"), "i.csv, line 3: the time (time) is 'infinity'")


def test_titles_of_numbers_and_of_names_of_items_are_text(call):
    write("i.csv", "user,item,time\nx,1984,1\nx,300,2\n")
    write("m.csv", "item,title,year\n1984,1984,1984\n300,300,2006\n")
    call(COMMAND.format("i.csv"))
    assert made()["item_text_dict"] == {0: {"title": "1984"}, 1: {"title": "300"}}


def test_rows_without_an_item_are_not_counted_as_replaced(call, capsys):
    write("i.csv", "user,item,time\nx,a,1\nx,b,2\n")
    write("m.csv", "item,title\na,Pen\nb,Ink\n,Nothing\n")
    call(COMMAND.format("i.csv"))
    assert "later row replaces" not in capsys.readouterr().out
