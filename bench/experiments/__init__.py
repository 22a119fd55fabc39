"""Which samples to train on, put to the test: one protocol for all methods, one results file, one table.

    make experiments        or: python -m bench.experiments.run

`scenarios` are the data, `methods` what chooses from them, `protocol` trains one of either for one seed, `run` does
what is missing from the results file, and `report` makes the table and the pictures from that file alone.
"""
