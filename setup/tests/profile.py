"""Runs profile.py as CloudLab's portal and as a person would, and checks what it asks for: the request RSpec.

The portal hands parameters over in a file, wants the request in another, and reads errors as JSON from standard error.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from lxml import etree

ROOT = Path(__file__).resolve().parents[2]
PROFILE = ROOT / "profile.py"
RSPEC = "{http://www.geni.net/resources/rspec/3}"
EMULAB = "{http://www.protogeni.net/resources/rspec/ext/emulab/1}"
TOUR = "{http://www.protogeni.net/resources/rspec/ext/apt-tour/1}"
UBUNTU22, UBUNTU24 = (
    "urn:publicid:IDN+emulab.net+image+emulab-ops//UBUNTU%d-64-STD" % release for release in (22, 24)
)
DEFAULTS = {
    "nodes": 8,
    "node_type": "m510",
    "image": UBUNTU22,
    "same_switch": True,
    "best_effort": True,
    "startup": True,
}

# The grammar of request RSpecs, version 3 (request.xsd and request-common.xsd of GENI), of what profile.py uses: which
# elements may stand in which, how often, and with which attributes.
ONE, OPTIONAL, ANY, SOME = (1, 1), (0, 1), (0, None), (1, None)
GRAMMAR = {
    "rspec": ({"type"}, {"generated", "generated_by", "expires"}, {"node": ANY, "link": ANY}),
    "node": (
        {"client_id", "exclusive"},
        {"component_id", "component_manager_id", "component_name"},
        {"sliver_type": ONE, "hardware_type": ANY, "interface": ANY, "services": ANY, "location": OPTIONAL},
    ),
    "sliver_type": ({"name"}, set(), {"disk_image": ANY}),
    "disk_image": ({"name"}, {"os", "version", "description"}, {}),
    "hardware_type": ({"name"}, set(), {}),
    "interface": ({"client_id"}, {"component_id"}, {"ip": ANY}),
    "ip": ({"address"}, {"netmask", "type"}, {}),
    "services": (set(), set(), {"execute": ANY, "install": ANY, "login": ANY}),
    "execute": ({"shell", "command"}, set(), {}),
    "link": (
        {"client_id"},
        set(),
        {"interface_ref": SOME, "link_type": ANY, "property": ANY, "component_manager": ANY},
    ),
    "interface_ref": ({"client_id"}, {"component_id"}, {}),
    "link_type": ({"name"}, {"class"}, {}),
}


def check_grammar(element):
    """Raises an AssertionError that names the element and what is wrong with it."""
    name = element.tag.removeprefix(RSPEC)
    required, optional, children = GRAMMAR[name]
    own = {key for key in element.attrib if not key.startswith("{")}
    assert required <= own, "<%s> lacks %s" % (name, required - own)
    assert own <= required | optional, "<%s> may not have %s" % (name, own - required - optional)
    counts = {}
    for child in element:
        # Extensions, which have other namespaces, may stand anywhere.
        if child.tag.startswith(RSPEC):
            child_name = child.tag.removeprefix(RSPEC)
            counts[child_name] = counts.get(child_name, 0) + 1
            check_grammar(child)
    for child_name, count in counts.items():
        assert child_name in children, "<%s> may not stand in <%s>" % (child_name, name)
    for child_name, (least, most) in children.items():
        count = counts.get(child_name, 0)
        assert least <= count and (most is None or count <= most), "%d <%s> in <%s>" % (count, child_name, name)


def run(arguments=(), environment=None):
    """Ends within a minute and leaves nothing behind."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("GENILIB")}
    return subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", PROFILE, *arguments],
        env=own | {"COLUMNS": "200"} | (environment or {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def in_portal(**parameters):
    """What the portal gets: the end of the program, and the request if there is one."""
    with tempfile.TemporaryDirectory() as folder:
        values, request = Path(folder, "values"), Path(folder, "request")
        values.write_text(json.dumps(parameters))
        done = run(
            environment={
                "GENILIB_PORTAL_MODE": "1",
                "GENILIB_PORTAL_PARAMS_PATH": str(values),
                "GENILIB_PORTAL_REQUEST_PATH": str(request),
            }
        )
        rspec = etree.fromstring(request.read_bytes()) if request.exists() else None
        return done, rspec


class Profile(unittest.TestCase):
    def request(self, **parameters):
        done, rspec = in_portal(**parameters)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.check_request(rspec, **(DEFAULTS | parameters))
        return rspec

    def check_request(self, rspec, nodes, node_type, image, same_switch, best_effort, startup):
        """Everything that a request has to say for these parameters, and nothing else."""
        self.assertEqual((rspec.tag, rspec.get("type")), (RSPEC + "rspec", "request"))
        check_grammar(rspec)
        found = rspec.findall(RSPEC + "node")
        self.assertEqual([node.get("client_id") for node in found], ["node%d" % index for index in range(nodes)])
        interfaces = []
        for index, node in enumerate(found):
            self.assertEqual(node.get("exclusive"), "true")
            self.assertEqual(node.find(RSPEC + "sliver_type").get("name"), "raw")
            self.assertEqual(node.find("%ssliver_type/%sdisk_image" % (RSPEC, RSPEC)).get("name"), image)
            self.assertEqual([kind.get("name") for kind in node.findall(RSPEC + "hardware_type")], [node_type])
            (interface,) = node.findall(RSPEC + "interface")
            interfaces.append(interface.get("client_id"))
            self.assertEqual(interfaces[-1], "node%d:lan" % index)
            (ip,) = interface.findall(RSPEC + "ip")
            self.assertEqual(
                dict(ip.attrib),
                {"address": "10.10.1.%d" % (index + 1), "netmask": "255.255.255.0", "type": "ipv4"},
            )
            commands = [dict(execute.attrib) for execute in node.iter(RSPEC + "execute")]
            wanted = {"shell": "bash", "command": "sudo /local/repository/setup/bootstrap.sh"}
            self.assertEqual(commands, [wanted] if startup else [])
        (lan,) = rspec.findall(RSPEC + "link")
        self.assertEqual([kind.get("name") for kind in lan.findall(RSPEC + "link_type")], ["lan"])
        self.assertEqual([ref.get("client_id") for ref in lan.findall(RSPEC + "interface_ref")], interfaces)
        # No bandwidth is asked for: it would be shaped.
        self.assertEqual(lan.findall(RSPEC + "property"), [])
        options = {
            child.tag.removeprefix(EMULAB): dict(child.attrib) for child in lan if child.tag.startswith(EMULAB)
        }
        expected = {"vlan_tagging": {"enabled": "false"}}
        if best_effort:
            expected["best_effort"] = {"enabled": "true"}
        if same_switch:
            expected["interswitch"] = {"allow": "false"}
        self.assertEqual(options, expected)

    def test_each_number_of_nodes(self):
        for nodes in range(2, 9):
            with self.subTest(nodes=nodes):
                self.request(nodes=nodes)

    def test_defaults(self):
        self.request()

    def test_each_parameter_alone_changes_its_part_of_the_request_only(self):
        changed = [{"image": UBUNTU24}, {"same_switch": False}, {"best_effort": False}, {"startup": False}]
        types = re.search(r"--node_type \{(.*?)\}", run(["--help"]).stdout)[1].split(",")
        self.assertIn("xl170", types)
        changed += [{"node_type": node_type} for node_type in types]
        for parameters in changed:
            with self.subTest(**parameters):
                self.request(**parameters)

    def test_all_parameters_at_once(self):
        self.request(
            nodes=3, node_type="xl170", image=UBUNTU24, same_switch=False, best_effort=False, startup=False
        )

    def test_each_parameter_is_described(self):
        described = re.findall(r"^  --(\w+) \S+\s+\S+", run(["--help"]).stdout, re.MULTILINE)
        self.assertEqual(described, list(DEFAULTS))

    def test_wrong_parameters_are_refused_with_a_sentence(self):
        beside = "give 2 to 8, because"
        cases = [
            ({"nodes": 1}, "1 nodes: " + beside, "nodes"),
            ({"nodes": 9}, "9 nodes: " + beside, "nodes"),
            ({"nodes": 0}, "0 nodes: " + beside, "nodes"),
            ({"nodes": -1}, "-1 nodes: " + beside, "nodes"),
            ({"nodes": "many"}, "Could not coerce 'many'", "nodes"),
            ({"node_type": "abacus"}, "Illegal value 'abacus'", "node_type"),
            ({"image": "CP/M"}, "Illegal value 'CP/M'", "image"),
        ]
        for parameters, sentence, name in cases:
            with self.subTest(**parameters):
                done, rspec = in_portal(**parameters)
                self.assertEqual(done.returncode, 101, done.stderr)
                self.assertIsNone(rspec)
                (error,) = json.loads(done.stderr)
                self.assertIn(sentence, error["message"])
                self.assertEqual(error["params"], [name])

    def test_a_person_gets_the_request_on_standard_output(self):
        done = run(["--nodes", "4", "--node_type", "xl170"])
        self.assertEqual(done.returncode, 0, done.stderr)
        self.check_request(etree.fromstring(done.stdout), **(DEFAULTS | {"nodes": 4, "node_type": "xl170"}))
        self.assertEqual(run(["--nodes", "1"]).returncode, 101)
        refused = run(["--node_type", "abacus"])
        self.assertEqual(refused.returncode, 2)
        self.assertIn("invalid choice: 'abacus'", refused.stderr)

    def test_the_portal_shows_what_it_is_and_what_to_do(self):
        _, rspec = in_portal()
        tour = rspec.find(TOUR + "rspec_tour")
        description = tour.findtext(TOUR + "description")
        instructions = tour.findtext(TOUR + "instructions")
        self.assertTrue(description.startswith("A LAN of bare-metal nodes"), description)
        self.assertIn("/local/repository/docs/cloudlab.md", instructions)

    def test_what_it_points_to_is_there(self):
        for name in ("setup/bootstrap.sh", "docs/cloudlab.md"):
            self.assertIn("/local/repository/" + name, PROFILE.read_text())
            self.assertTrue((ROOT / name).is_file(), name)
        self.assertTrue(os.access(ROOT / "setup/bootstrap.sh", os.X_OK))

    def test_the_grammar_can_say_no(self):
        _, rspec = in_portal(nodes=2)
        for break_it in (
            lambda: rspec.find(RSPEC + "node").attrib.pop("client_id"),
            lambda: etree.SubElement(rspec.find(RSPEC + "link"), RSPEC + "node"),
            lambda: rspec.find(RSPEC + "link").set("bandwidth", "1"),
            lambda: [rspec.find(RSPEC + "link").remove(ref) for ref in rspec.iter(RSPEC + "interface_ref")],
        ):
            _, rspec = in_portal(nodes=2)
            check_grammar(rspec)
            break_it()
            with self.assertRaises(AssertionError):
                check_grammar(rspec)


if __name__ == "__main__":
    unittest.main()
