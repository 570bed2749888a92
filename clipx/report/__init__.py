"""`clipx report RUN`: one HTML file on what a run did, what its model can and cannot do, and what
was wrong with its data. It needs no network and no script.

record.py reads what the run wrote down, seen.py what its model makes of its test sets; each other
module turns a part of that into a section, or into a line that says why there is none.
"""
