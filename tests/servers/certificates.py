"""An authority, and certificates that it signs, for the servers of 127.0.0.1 and their clients."""

from __future__ import annotations

import subprocess
from pathlib import Path

_NEW_KEY = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"


class Certificates:
    """Files in a folder: ``ca``, and ``cert`` and ``key`` of a server and of a client. Made with openssl."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ca = self._file("ca.pem")
        self._openssl(
            f"req -x509 {_NEW_KEY} -days 2 -subj /CN=authority -addext keyUsage=critical,keyCertSign"
            f" -keyout {self._file('ca-key.pem')} -out {self.ca}"
        )
        self.server_cert, self.server_key = self._signed("server")
        self.client_cert, self.client_key = self._signed("client")

    def _file(self, name: str) -> str:
        return str(self._folder / name)

    def _signed(self, who: str) -> tuple[str, str]:
        cert, key, request, extensions = (self._file(f"{who}{end}") for end in (".pem", "-key.pem", ".csr", ".ext"))
        # All that RFC 5280 asks for: since Python 3.13 nothing less will do.
        Path(extensions).write_text(
            "subjectAltName = IP:127.0.0.1\nbasicConstraints = CA:FALSE\nkeyUsage = digitalSignature\n"
            "subjectKeyIdentifier = hash\nauthorityKeyIdentifier = keyid\n"
        )
        self._openssl(f"req {_NEW_KEY} -subj /CN={who} -keyout {key} -out {request}")
        signed_by = f"-CA {self.ca} -CAkey {self._file('ca-key.pem')} -CAcreateserial"
        self._openssl(f"x509 -req -in {request} {signed_by} -days 2 -extfile {extensions} -out {cert}")
        return cert, key

    def _openssl(self, arguments: str) -> None:
        subprocess.run(["openssl", *arguments.split()], check=True, capture_output=True, cwd=self._folder)
