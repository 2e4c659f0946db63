"""The view."""

from __future__ import annotations

import secrets
from datetime import timedelta

from django.urls import path
from django.utils import timezone
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework_api_key.permissions import HasAPIKey

from tests.bench.django_site.models import Invite


class CreateInvite(APIView):
    permission_classes = (HasAPIKey,)

    def post(self, request: Request) -> Response:
        prefix = request.headers["Authorization"].removeprefix("Api-Key ").partition(".")[0]
        token, now = secrets.token_urlsafe(18), timezone.now()
        Invite.objects.create(
            token=token, host="example.com", created_at=now, expires_at=now + timedelta(days=7), source=prefix
        )
        return Response(status=201, headers={"Location": f"https://example.com/invite?{token}"})


urlpatterns = [path("invites", CreateInvite.as_view())]
