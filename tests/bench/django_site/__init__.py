"""A Django site with one view, which creates an invite for whoever has a key of djangorestframework-api-key.

It runs in an environment of its own and imports nothing of this repository.

settings.py  the database, and that it has no limits of rate
models.py    the invite
views.py     the view
make_key.py  the command that makes the tables and a key
"""
