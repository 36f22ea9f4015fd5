"""Run inside a new network namespace: make flows of many kinds, then print what each reader says of them.

Prints one JSON object: raw ctnetlink answers (hex) and the output of the `conntrack` command, taken so that
nothing changed in between.
"""

from __future__ import annotations

import ctypes
import json
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from finwait.table.flows import FlowTable
from finwait.uapi import conntrack as ct
from finwait.uapi import netlink as nl

CLONE_NEWNET = 0x40000000
RULES = """
table inet scene {
  ct helper control { type "ftp" protocol tcp; l3proto ip; }
  chain first { type filter hook output priority -300;
    tcp dport 5005 ct zone set 5
    tcp dport 5006 ct original zone set 6
  }
  chain second { type filter hook output priority 0;
    tcp dport 5001 ct mark set 0xdeadbeef
    tcp dport 5001 ct label set 127
    tcp dport 5002 ct helper set "control"
  }
  chain third { type nat hook output priority -100;
    ip daddr 10.9.9.9 tcp dport 80 dnat ip to 127.0.0.1:5001
  }
}
"""


def run(*words: str, data: str | None = None) -> str:
    return subprocess.run(words, input=data, text=True, capture_output=True, check=True).stdout


def new_namespace() -> bool:
    """Move this process into a new network namespace with loopback up; say on stderr why if not."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        print(f"unshare: errno {ctypes.get_errno()}", file=sys.stderr)
        return False
    run("ip", "link", "set", "lo", "up")
    return True


def ask(request: bytes, family: int = 12) -> list[bytes]:
    """Send one request to NETLINK_NETFILTER (or another family) and return the datagrams that answer it."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, family) as sock:
        sock.settimeout(10)
        sock.send(request)
        dump = struct.unpack_from("=H", request, 6)[0] & 0x300
        parts: list[bytes] = []
        while True:
            data = sock.recv(1 << 18)
            parts.append(data)
            offset = 0
            while offset < len(data):
                length, kind = struct.unpack_from("=IH", data, offset)
                if kind in (2, 3) or not dump:
                    return parts
                offset += (length + 3) & ~3


def make_flows() -> list[socket.socket]:
    kept: list[socket.socket] = []
    for family, host, port, via in (
        (socket.AF_INET, "127.0.0.1", 5001, "127.0.0.1"),
        (socket.AF_INET, "127.0.0.1", 5001, "10.9.9.9"),
        (socket.AF_INET6, "::1", 5001, "::1"),
        (socket.AF_INET, "127.0.0.1", 5002, "127.0.0.1"),
        (socket.AF_INET, "127.0.0.1", 5003, "127.0.0.1"),
        (socket.AF_INET, "127.0.0.1", 5005, "127.0.0.1"),
        (socket.AF_INET, "127.0.0.1", 5006, "127.0.0.1"),
    ):
        server = socket.socket(family)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        server.bind((host, port))
        server.listen()
        client = socket.socket(family)
        client.settimeout(10)
        client.connect((via, 80 if via == "10.9.9.9" else port))
        kept += [server, client]
        if port == 5002:  # half-closed by the client
            client.shutdown(socket.SHUT_WR)
        elif port == 5003:  # reset
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        else:
            client.send(b"hello")
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 5300))
    udp.sendto(b"nobody answers", ("127.0.0.1", 5301))
    echo = struct.pack("!BBHHH", 8, 0, 0, 0x1234, 1)
    total = sum(struct.unpack("!4H", echo))
    echo = struct.pack("!BBHHH", 8, 0, ~(total + (total >> 16)) & 0xFFFF, 0x1234, 1)
    ping = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    ping.sendto(echo, ("127.0.0.1", 0))
    ping6 = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    ping6.sendto(struct.pack("!BBHHH", 128, 0, 0, 0x4321, 1), ("::1", 0))
    return [*kept, udp, ping, ping6]


def one_entry(dump: list[bytes]) -> list[dict[str, list[int]]]:
    """Read and delete single entries (one plain, one in a zone, one in a zone of its own direction only).

    Returns:
        Netlink message types and error numbers of each answer, by what was tried.
    """
    data = np.frombuffer(b"".join(dump), np.uint8)
    messages = nl.walk(data, np.array([0]), np.array([len(data)]))
    rows = ct.find_rows(data, messages.where(messages.type == ct.CT_NEW))
    table = FlowTable.from_rows(rows, np.zeros(len(rows), np.uint32))
    answers = []
    for chosen in (
        table.orig_dport == 80,
        table.present("zone"),
        table.present("orig_zone"),
        (table.orig_dport == 5001) & (table.family == 10),
    ):
        row = int(np.flatnonzero(chosen)[0])
        size = 4 if table.family[row] == 2 else 16
        address = {
            name: struct.pack("!QQ", *(int(w) for w in table[name][row]))[-size:]
            for name in ("orig_src", "orig_dst")
        }
        original = ct.FlowTuple(
            int(table.family[row]),
            int(table.protocol[row]),
            address["orig_src"],
            address["orig_dst"],
            int(table.orig_sport[row]),
            int(table.orig_dport[row]),
            int(table.orig_zone[row]) if table.present("orig_zone")[row] else None,
        )
        zone = int(table.zone[row]) if table.present("zone")[row] else None
        identity = int(table.id[row])
        tried: dict[str, list[int]] = {}
        for name, kind, wanted in (
            ("get", ct.CT_GET, identity),
            ("delete another", ct.CT_DELETE, identity ^ 1),
            ("delete", ct.CT_DELETE, identity),
            ("get again", ct.CT_GET, identity),
        ):
            (answer,) = ask(ct.entry_request(kind, original, zone=zone, identity=wanted))
            kind_of_answer = struct.unpack_from("=H", answer, 4)[0]
            error = struct.unpack_from("=i", answer, 16)[0] if kind_of_answer == nl.NLMSG_ERROR else 0
            tried[name] = [kind_of_answer, error]
        answers.append(tried)
    return answers


def main() -> int:
    if not new_namespace():
        return 77
    run("ip", "address", "add", "10.9.9.9/32", "dev", "lo")
    run("nft", "-f", "-", data=RULES)
    settings = {"acct": 1, "timestamp": 1}  # and nothing shall expire while it is looked at
    settings |= {f"{name}_timeout": 300 for name in ("udp", "icmp", "icmpv6")} | {"tcp_timeout_close": 300}
    for name, value in settings.items():
        Path(f"/proc/sys/net/netfilter/nf_conntrack_{name}").write_text(str(value))
    begin = time.time_ns()
    flows = make_flows()
    made = time.time_ns()
    deadline = time.monotonic() + 60
    while True:  # timeouts tick once a second: what is compared with them must fit between two ticks
        before = ask(ct.dump_request())
        text = run("conntrack", "-L", "-o", "extended,id")
        if ask(ct.dump_request()) == before:
            break
        if time.monotonic() > deadline:
            print("the flows never kept still", file=sys.stderr)
            return 1
    assured = ct.STATUS_BITS["ASSURED"]
    result: dict[str, Any] = {
        "text": text,
        "proc": Path("/proc/net/nf_conntrack").read_text(),
        "tcp4": ask(ct.dump_request(2, protocol=6)),
        "ipv6": ask(ct.dump_request(10)),
        "assured": ask(ct.dump_request(status=(assured, assured))),
        "marked": ask(ct.dump_request(mark=(0xDEADBEEF, 0xFFFFFFFF))),
        "zone5": ask(ct.dump_request(zone=5)),
        "statistics_cpu": ask(ct.statistics_cpu_request()),
        "statistics_cpu_text": run("conntrack", "-S"),
        "statistics_cpu_proc": Path("/proc/net/stat/nf_conntrack").read_text(),
        "statistics": ask(ct.statistics_request()),
        "count": run("conntrack", "-C").strip(),
        "max": Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text().strip(),
        "dump": before,
    }
    result |= {"begin_ns": begin, "made_ns": made}
    result["single"] = one_entry(before)
    result["left"] = run("conntrack", "-L", "-o", "id")
    json.dump(result, sys.stdout, default=bytes.hex)
    for sock in flows:
        sock.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
