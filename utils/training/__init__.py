"""What the training loop of pre_train.py stands on."""
