"""``bin/bench``: the service measured beside its peers, in one run, on one machine.

peers.py    who is measured, and how each is started on empty data
synapse.py, api_key.py, django_site/
            peers in virtual environments of their own, which environments.py makes
plans.py    who is measured in one run, and what they are held against
postgresql.py, pending.py
            the same on PostgreSQL, and on a store that holds many invites
preparing.py
            what must be there before the first round: a PostgreSQL, a filled store
load.py     the load: wrk, with every answer's status counted
rounds.py   the order of the measurements, and what one of them is
machine.py, processes.py
            what it ran on, and what the workers took of it
report.py   the table and the JSON
memory.py, soak.py
            what the workers hold over many requests, and ``bin/soak``, which judges whether that grows
profile.py  what one worker's time goes to, by py-spy
bare.py     the app that stores nothing
"""
