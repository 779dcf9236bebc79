"""What the data scripts are made of; nothing here is run by itself."""
