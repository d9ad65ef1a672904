"""Runnable experiments: the Flower app, the engines, the command line and the reports."""
