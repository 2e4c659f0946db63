"""Lets ``python -m invites_wsgi.cli`` run the command."""

from invites_wsgi.cli.main import main

if __name__ == "__main__":
    main()
