#!/usr/bin/env python3
"""The nodes of a CloudLab experiment as an inventory for Ansible, from the testbed's own list (`tmcc hostnames`).

The first LINERATE_SERVERS nodes by address are servers (default: half of them, at least one), the others are clients. Runs on
any node of the experiment: ansible-playbook -i inventory.py site.yml
"""

import ipaddress
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

EMULAB = "/usr/local/etc/emulab"


def fail(sentence):
    """Ends with a sentence that says what to do."""
    sys.exit("inventory.py: " + sentence)


def hostnames():
    """The testbed's list: a line of NAME=… IP=… ALIASES='…' for each interface of the experiment."""
    tmcc = shutil.which("tmcc", path=os.environ.get("PATH", "") + os.pathsep + EMULAB)
    if tmcc is None:
        fail("there is no tmcc here: run it on a node of a CloudLab experiment, or write an inventory as in inventory.example.yml")
    try:
        done = subprocess.run([tmcc, "hostnames"], capture_output=True, text=True, timeout=60, check=True)
    except (subprocess.SubprocessError, OSError) as error:
        fail("%s does not list the nodes: %s" % (tmcc, error))
    return done.stdout


def nodes(text):
    """Name and address of each node, by address."""
    found = {}
    for line in text.splitlines():
        fields = dict(field.split("=", 1) for field in shlex.split(line) if "=" in field)
        if not {"NAME", "IP"} <= fields.keys():
            continue
        # Of `node0-lan`, `node0-0` and `node0`, the shortest is the node's, and the others its interfaces'.
        name = min([fields["NAME"], *fields.get("ALIASES", "").split()], key=len)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", name):
            fail("`%s` in tmcc's list has no name of a node" % line)
        try:
            address = ipaddress.IPv4Address(fields["IP"])
        except ValueError:
            fail("`%s` in tmcc's list has no IPv4 address" % line)
        # One with several experiment interfaces is measured over the first.
        found[name] = min(address, found.get(name, address))
    return sorted(found.items(), key=lambda node: node[1])


def servers_wanted(count):
    """How many of `count` nodes are servers."""
    text = os.environ.get("LINERATE_SERVERS", str(max(count // 2, 1)))
    if not text.isdecimal() or not 1 <= int(text) <= count:
        fail("LINERATE_SERVERS is `%s`: give 1 to %d, the number of nodes" % (text, count))
    return int(text)


def inventory():
    """What Ansible asks for with --list."""
    found = nodes(hostnames())
    if not found:
        fail("tmcc lists no nodes: the experiment needs a LAN, as profile.py makes it")
    names = [name for name, _ in found]
    servers = servers_wanted(len(found))
    return {
        "servers": {"hosts": names[:servers]},
        "clients": {"hosts": names[servers:]},
        "_meta": {"hostvars": {name: {"linerate_addr": str(address)} for name, address in found}},
    }


if __name__ == "__main__":
    if sys.argv[1:] == ["--list"]:
        print(json.dumps(inventory(), indent=2))
    elif len(sys.argv) == 3 and sys.argv[1] == "--host":
        print("{}")
    else:
        fail("give --list or --host NAME")
