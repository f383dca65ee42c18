"""Users and passwords that are fetched for each new connection, from a service that may fail like any other."""

from __future__ import annotations

import redis

from celery_distsched.drivers.secret import Secrets


class Guarded(redis.CredentialProvider):
    """The user's provider, whose errors are those of a connection that cannot be made.

    After any other error redis-py would go on with the connection as it is, neither authenticated nor in its database.
    Without credentials it would not authenticate at all, and of a text it would take the letters for them.
    """

    def __init__(self, provider: redis.CredentialProvider, secrets: Secrets) -> None:
        self._provider = provider
        self._secrets = secrets

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """Fetch them; raises `redis.ConnectionError`."""
        try:
            credentials: tuple[str] | tuple[str, str] = self._provider.get_credentials()
        except Exception as exc:  # noqa: BLE001  (a service of the user's may raise anything)
            # What it says may have the secret in it.
            raise redis.ConnectionError(f"the credential_provider raised {type(exc).__name__}") from None
        texts = isinstance(credentials, (tuple, list)) and all(isinstance(text, (str, bytes)) for text in credentials)
        if not texts or len(credentials) not in (1, 2):
            # What it returned may have the secret in it.
            raise redis.ConnectionError("the credential_provider returned neither (password,) nor (user, password)")
        self._secrets.learn(credentials[-1])
        return credentials
