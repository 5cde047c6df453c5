"""The coordinator's web server for tests: `deploy/nginx.conf` as it is, with other places and ports."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DEPLOY = Path(__file__).parent.parent / "deploy"
DAV = Path("/usr/lib/nginx/modules/ngx_http_dav_ext_module.so")
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")

needs_nginx = pytest.mark.skipif(
    not (NGINX and DAV.exists()), reason="Debian's nginx and libnginx-mod-http-dav-ext are absent"
)


def password_of(hospital: str) -> str:
    return f"{hospital}-password"


def credential(hospital: str, url: str) -> str:
    """Return a hospital's credential for the server at `url`, as WARDROUND_EXCHANGE_AUTH has it."""
    return f"{hospital}:{password_of(hospital)}@{urlsplit(url).netloc}"


@dataclass(frozen=True)
class Webserver:
    """A running nginx; `certificate` is what its clients have to trust."""

    port: int
    certificate: Path
    exchange: Path

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def auth(self, hospital: str) -> str:
        """Return a hospital's credential for this server."""
        return credential(hospital, self.url)


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def webserver(folder: Path, hospitals: Sequence[str], prefect_port: int = 1) -> Iterator[Webserver]:
    """Serve `folder`/exchange, and Prefect where it is at `prefect_port`."""
    port = free_port()
    process = subprocess.Popen(command(folder, hospitals, "127.0.0.1", port, prefect_port))
    try:
        wait_for(port)
        yield Webserver(port, folder / "hub.pem", folder / "exchange")
    finally:
        process.terminate()
        process.wait()


def command(
    folder: Path, hospitals: Sequence[str], address: str, port: int, prefect_port: int
) -> list[str]:
    """Lay out `folder` for a server at this address; return the command that serves it."""
    for place in (
        "objects/coordinator",
        "models",
        *(f"{kind}/{h}" for kind in ("orders", "statements", "objects") for h in hospitals),
    ):
        (folder / "exchange" / place).mkdir(parents=True, exist_ok=True)
    certify(folder, address)
    users = "".join(f"{h}:{{PLAIN}}{password_of(h)}\n" for h in hospitals)
    (folder / "exchange.htpasswd").write_text(users)
    site = (DEPLOY / "nginx.conf").read_text()
    for was, now in (
        ("listen 443 ssl", f"listen {address}:{port} ssl"),
        ("hub.example.org", "localhost"),
        ("/etc/wardround", str(folder)),
        ("/srv/wardround", str(folder)),
        ("127.0.0.1:4200", f"127.0.0.1:{prefect_port}"),
    ):
        assert was in site, was
        site = site.replace(was, now)
    (folder / "nginx.conf").write_text(
        f"load_module {DAV};\nworker_processes 1;\nuser root;\npid {folder}/nginx.pid;\n"
        f"error_log {folder}/error.log;\ndaemon off;\nevents {{}}\nhttp {{\n"
        f"access_log {folder}/access.log;\nclient_body_temp_path {folder}/body;\n"
        f"proxy_temp_path {folder}/proxy;\n{site}}}\n"
    )
    error_log = str(folder / "error.log")
    return [str(NGINX), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", error_log]


def wait_for(port: int) -> None:
    """Wait until something listens on a port of loopback."""
    for _ in range(100):
        with closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on {port}")


def certify(folder: Path, address: str) -> None:
    """Make a certificate for localhost and an address that signs itself: hub.pem and hub.key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ip_address(address))]
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    form, no_password = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "hub.key").write_bytes(key.private_bytes(pem, form, no_password))
    (folder / "hub.pem").write_bytes(certificate.public_bytes(pem))
