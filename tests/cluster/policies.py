"""Holds the pods of the script's cluster to its NetworkPolicies.

Its network is a plain bridge, and the plugins that come with CNI know no policies. What the real
programs for it do with packets is done here with the same means, iptables on the bridge: what
passes between two pods has to be let out by the policies of the one and let in by those of the
other. A pod that no policy chooses for a direction is open in that direction; answers to what was
let through pass. Packets from and to the node itself are left alone (probes, names, the API).
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

Object = dict[str, Any]
CHAIN, OUT, IN = "TEST-POLICIES", "TEST-POLICIES-OUT", "TEST-POLICIES-IN"
SECONDS = 1
"""Between two looks at the policies and pods."""


def chosen(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a label selector takes an object; an empty one takes all."""
    if any(labels.get(name) != value for name, value in selector.get("matchLabels", {}).items()):
        return False
    for rule in selector.get("matchExpressions", []):
        values, value = rule.get("values", []), labels.get(rule["key"])
        holds = {
            "In": value in values,
            "NotIn": value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }
        if not holds[rule["operator"]]:
            return False
    return True


def addresses(peer: Object, policy: Object, pods: list[Object], spaces: list[Object]) -> list[str]:
    """The addresses of a peer: of pods that run, or of a block without its exceptions."""
    if "ipBlock" in peer:
        blocks = [ipaddress.ip_network(peer["ipBlock"]["cidr"])]
        for text in peer["ipBlock"].get("except", []):
            out = ipaddress.ip_network(text)
            blocks = [
                part
                for block in blocks
                for part in (block.address_exclude(out) if out.subnet_of(block) else [block])
            ]
        return [str(block) for block in blocks if block.version == 4]
    namespaces = {policy["metadata"]["namespace"]}
    if "namespaceSelector" in peer:
        namespaces = {
            space["metadata"]["name"]
            for space in spaces
            if chosen(peer["namespaceSelector"], space["metadata"].get("labels", {}))
        }
    return [
        pod["status"]["podIP"]
        for pod in pods
        if pod["metadata"]["namespace"] in namespaces
        and chosen(peer.get("podSelector", {}), pod["metadata"].get("labels", {}))
    ]


def port(entry: Object) -> str:
    """The part of an iptables rule for a port, or a range of ports, that has a number."""
    protocol = entry.get("protocol", "TCP").lower()
    if "port" not in entry:
        return f"-p {protocol}"
    last = f":{entry['endPort']}" if "endPort" in entry else ""
    return f"-p {protocol} --dport {int(entry['port'])}{last}"


def rules(listed: list[Object]) -> str:
    """What iptables-restore makes of the policies, pods and namespaces of a cluster."""
    pods = [o for o in listed if o["kind"] == "Pod" and o.get("status", {}).get("podIP")]
    pods = [pod for pod in pods if not pod["spec"].get("hostNetwork")]
    spaces = [o for o in listed if o["kind"] == "Namespace"]
    policies = [o for o in listed if o["kind"] == "NetworkPolicy"]
    lines = [f":{chain} - [0:0]" for chain in (CHAIN, OUT, IN)]
    lines += [f"-A {CHAIN} -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN"]
    lines += [f"-A {CHAIN} -j {OUT}", f"-A {CHAIN} -j {IN}"]
    ways = (("Egress", "to", OUT, "-s", "-d"), ("Ingress", "from", IN, "-d", "-s"))
    for direction, peers, chain, here, there in ways:
        for pod in pods:
            mine = [
                policy
                for policy in policies
                if policy["metadata"]["namespace"] == pod["metadata"]["namespace"]
                and direction in policy["spec"]["policyTypes"]
                and chosen(policy["spec"]["podSelector"], pod["metadata"].get("labels", {}))
            ]
            start = f"-A {chain} {here} {pod['status']['podIP']}"
            for policy in mine:
                for rule in policy["spec"].get(direction.lower(), []):
                    sides = [
                        f"{there} {address}"
                        for peer in rule.get(peers, [])
                        for address in addresses(peer, policy, pods, spaces)
                    ]
                    sides = sides if rule.get(peers) else [""]
                    doors = [port(entry) for entry in rule.get("ports", [])] or [""]
                    lines += [f"{start} {s} {d} -j RETURN" for s in sides for d in doors]
            if mine:
                lines.append(f"{start} -j DROP")
    return "\n".join(["*filter", *lines, "COMMIT", ""])


def iptables(*words: str, check: bool = True) -> bool:
    return (
        subprocess.run(["iptables", "-w", *words], capture_output=True, check=check).returncode == 0
    )


def enforce() -> None:
    """Bring the node's rules to what the cluster's objects say now."""
    get = ["kubectl", "get", "networkpolicies,pods,namespaces", "-A", "-o", "json"]
    listed = subprocess.run(get, capture_output=True, text=True, check=True).stdout
    restore = ["iptables-restore", "-w", "--noflush"]
    text = rules(json.loads(listed)["items"])
    subprocess.run(restore, input=text, text=True, capture_output=True, check=True)
    if not iptables("-C", "FORWARD", "-j", CHAIN, check=False):
        iptables("-I", "FORWARD", "-j", CHAIN)


@contextmanager
def enforced() -> Iterator[None]:
    """Policies are held to inside; nothing of it stays."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(SECONDS):
            enforce()

    enforce()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        iptables("-D", "FORWARD", "-j", CHAIN)
        for chain in (CHAIN, OUT, IN):
            iptables("-F", chain)
        for chain in (CHAIN, OUT, IN):
            iptables("-X", chain)
