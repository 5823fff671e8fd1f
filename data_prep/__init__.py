"""Data preparation: from images, masks and tables (or a phantom) to one datalist. ``python -m data_prep --help``."""
