"""`clipx report RUN`: one HTML file on a run, its model and its data, without network or script.

collect.py reads the files of the run, and model_outputs.py applies its newest model to its test
sets. The other modules compute what a section shows, and page.html.j2 lays out the sections.
"""
