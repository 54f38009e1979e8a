"""A report: runs as one HTML file that asks for nothing, neither network nor script.

`page` finds what is shown, `chart` and `pictures` make it fit to be shown, and
`page.html` is how it looks.
"""
