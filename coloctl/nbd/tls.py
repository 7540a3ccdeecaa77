"""Encrypt a connection to an NBD server, and check the server's certificate.

Called by `nbd.client` once the server has agreed to STARTTLS.

Invariant: the other side proves by a certificate of the pair's authority that it is the machine of
the given name. A connection that fails this is closed, and never used in plain.
"""

from __future__ import annotations

import socket
import ssl

from coloctl.model.tls import TlsFiles
from coloctl.nbd.wire import NBDFailed


def encrypt(sock: socket.socket, files: TlsFiles, export: str) -> ssl.SSLSocket:
    """Shake hands over ``sock``, which is used up; raises `NBDFailed` where that fails."""
    try:
        context = _context(files)
    except OSError as error:
        named = error.filename or files.cert
        raise NBDFailed(f"{export}: {named} cannot be used: {sentence(error)}") from error
    try:
        return context.wrap_socket(sock, server_hostname=files.name)
    except ValueError as error:  # no name that a certificate could have
        raise NBDFailed(f"{export}: {files.name}: {error}") from error
    except OSError as error:
        raise NBDFailed(f"{export}: no encrypted connection: {sentence(error)}") from error


def _context(files: TlsFiles) -> ssl.SSLContext:
    """Build what a client needs; `PROTOCOL_TLS_CLIENT` checks certificate and name by itself."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for path in (files.ca, files.cert, files.key):
        path.open("rb").close()  # OpenSSL's error would name no file
    context.load_verify_locations(files.ca)
    context.load_cert_chain(files.cert, files.key)
    return context


def sentence(error: OSError) -> str:
    """Return the reason of an error of a socket, without OpenSSL's file names and numbers."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return str(error.verify_message)
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return error.strerror or str(error)
