"""The invite."""

from __future__ import annotations

from django.db import models


class Invite(models.Model):
    token = models.CharField(max_length=64, unique=True)
    host = models.CharField(max_length=255)
    created_at = models.DateTimeField(db_index=True)
    expires_at = models.DateTimeField()
    source = models.CharField(max_length=255)
