"""What is in an image, as SPDX 2.3 in JSON: Debian packages and wheels, by name, version, checksum and purl.

It names what was put in, not each file of it: parts of packages are left out of the image (`deploy.image.build`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal
from urllib.parse import quote

__all__ = ["Part", "spdx"]


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """A package that was put into an image."""

    kind: Literal["deb", "pypi"]
    name: str
    version: str
    sha256: str
    licence: str = ""
    """An SPDX expression; empty where nobody says it in that form."""

    @property
    def purl(self) -> str:
        """Its package URL."""
        version = quote(self.version, safe=":~+.-")
        if self.kind == "deb":
            return f"pkg:deb/debian/{quote(self.name, safe='+.-')}@{version}?arch=amd64&distro=debian-12"
        return f"pkg:pypi/{re.sub('[-_.]+', '-', self.name).lower()}@{version}"


_LICENCE: Final = re.compile(r"[A-Za-z0-9.+-]+(?: (?:AND|OR|WITH) [A-Za-z0-9.+-]+)*")
_KNOWN: Final = ("Apache-", "BSD-", "MIT", "PSF-", "Python-", "0BSD", "Zlib", "CC0-", "GPL-", "LGPL-", "MPL-")


def _licence(text: str) -> str:
    fits = _LICENCE.fullmatch(text) and all(
        word in ("AND", "OR", "WITH") or word.startswith(_KNOWN) or word.endswith("exception")
        for word in text.split()
    )
    return text if fits else "NOASSERTION"


def spdx(image: str, version: str, parts: Iterable[Part], epoch: int) -> bytes:
    """Return the document.

    Args:
        image: its name.
        version: its version.
        parts: what is in it.
        epoch: when it was made, in seconds.
    """
    parts = sorted(parts)
    own = {
        "SPDXID": "SPDXRef-image",
        "name": image,
        "versionInfo": version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "Apache-2.0",
        "copyrightText": "NOASSERTION",
        "primaryPackagePurpose": "CONTAINER",
    }
    packages: list[dict[str, Any]] = [own]
    for part in parts:
        licence = _licence(part.licence)
        packages.append(
            {
                "SPDXID": "SPDXRef-" + re.sub("[^A-Za-z0-9.-]", "-", f"{part.kind}-{part.name}"),
                "name": part.name,
                "versionInfo": part.version,
                "supplier": "Organization: Debian" if part.kind == "deb" else "NOASSERTION",
                "downloadLocation": "NOASSERTION",
                "filesAnalyzed": False,
                "checksums": [{"algorithm": "SHA256", "checksumValue": part.sha256}],
                "licenseConcluded": "NOASSERTION",
                "licenseDeclared": licence,
                "copyrightText": "NOASSERTION",
                "externalRefs": [
                    {
                        "referenceCategory": "PACKAGE-MANAGER",
                        "referenceType": "purl",
                        "referenceLocator": part.purl,
                    }
                ],
            }
        )
    content = hashlib.sha256(json.dumps(packages, sort_keys=True).encode()).hexdigest()
    document = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": f"{image}-{version}",
        "documentNamespace": f"https://spdx.org/spdxdocs/{image}-{version}-{content[:32]}",
        "creationInfo": {
            "created": datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "creators": ["Tool: finwait deploy/image/build.py"],
        },
        "packages": packages,
        "relationships": [
            {
                "spdxElementId": "SPDXRef-DOCUMENT",
                "relationshipType": "DESCRIBES",
                "relatedSpdxElement": "SPDXRef-image",
            },
            *(
                {
                    "spdxElementId": "SPDXRef-image",
                    "relationshipType": "CONTAINS",
                    "relatedSpdxElement": item["SPDXID"],
                }
                for item in packages[1:]
            ),
        ],
    }
    return json.dumps(document, indent=1).encode() + b"\n"
