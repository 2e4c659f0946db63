"""The command: makes the tables and a key, which it prints."""

from __future__ import annotations

import django
from django.core.management import call_command

if __name__ == "__main__":
    django.setup()
    call_command("migrate", run_syncdb=True, verbosity=0)
    # Here, because it is a model: none can be imported before the setup.
    from rest_framework_api_key.models import APIKey

    print(APIKey.objects.create_key(name="bench")[1])
