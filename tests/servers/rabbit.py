"""RabbitMQ."""

from __future__ import annotations

import os
import socket
import subprocess

from tests.servers.binaries import find_binary
from tests.servers.process import Server, free_port

# The client's first bytes of AMQP 0-9-1; a broker that takes connections answers with a frame of its own.
_GREETING = b"AMQP\x00\x00\x09\x01"


class RabbitServer(Server):
    """A RabbitMQ broker with its own node name, folders and port mapper, that touches no other on this machine."""

    scheme = "amqp"
    path = "//"

    def __init__(self) -> None:
        super().__init__()
        self.username = self.password = "guest"
        self._dist_port = free_port()
        self._mapper = _PortMapper()

    def command(self) -> list[str]:
        """Return the program and its arguments."""
        return [find_binary("rabbitmq-server")]

    def environment(self) -> dict[str, str]:
        """Say where everything is; the broker's defaults are the system's own folders and ports."""
        config = self.folder / "rabbitmq.conf"
        # Its own default refuses every publish on a machine that is short of disk.
        config.write_text("disk_free_limit.absolute = 1MB\nlog.console.level = warning\n")
        return {
            **self._mapper.environment(),
            "HOME": str(self.folder),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "none.conf"),
            "RABBITMQ_CONFIG_FILE": str(config),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "no_plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self.folder / "generated"),
            "RABBITMQ_LOG_BASE": str(self.folder),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_MNESIA_BASE": str(self.data),
            "RABBITMQ_NODENAME": f"test{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": self.host,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            # Without busy-waiting schedulers it leaves the processor to the tests.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}"
            ),
        }

    def control(self, *words: str) -> None:
        """Have `rabbitmqctl` do this; raises `subprocess.CalledProcessError`."""
        environment = self.environment()
        command = [find_binary("rabbitmqctl"), "-n", environment["RABBITMQ_NODENAME"], *words]
        subprocess.run(command, env={**os.environ, **environment}, check=True, capture_output=True)

    def ready(self) -> bool:
        """Its listener opens last of all."""
        with socket.create_connection((self.host, self.port), timeout=5) as connection:
            connection.sendall(_GREETING)
            return connection.recv(1) == b"\x01"

    def start(self) -> None:
        """Start its port mapper too."""
        if self._mapper.pid is None:
            self._mapper.start()
        try:
            super().start()
        except BaseException:
            self._mapper.stop()
            raise

    def stop(self) -> None:
        """Stop the broker, then its port mapper."""
        super().stop()
        self._mapper.stop()


class _PortMapper(Server):
    """Where Erlang nodes find each other; one that Erlang starts by itself would outlive the test as a daemon."""

    scheme = "epmd"

    def command(self) -> list[str]:
        return [find_binary("epmd")]

    def environment(self) -> dict[str, str]:
        return {"ERL_EPMD_PORT": str(self.port), "ERL_EPMD_ADDRESS": self.host}

    def ready(self) -> bool:
        with socket.create_connection((self.host, self.port), timeout=5):
            return True
