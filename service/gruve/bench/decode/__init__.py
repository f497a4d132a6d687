"""`gruve bench decode`: the time of one decode step, sampling included, beside other runtimes on the same weights."""
