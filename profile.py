"""A LAN of bare-metal nodes to run linerate on: servers and clients of one cluster, joined by their experiment interfaces.

Every node has the repository in /local/repository and, unless told otherwise, builds and installs linerate-server, linerate
and linerate-bench from it while it boots.

Instructions:
Wait until every node is *Ready* and, if it builds at boot, its start-up service has *Finished*; on the node,
`sudo tail /var/lib/linerate-setup/bootstrap.log` shows how far it is. Then log in to `node0` and follow
`/local/repository/docs/cloudlab.md`: tune the NIC of every node, check that the nodes reach each other over 10.10.1.0/24,
and run the cluster. The servers listen at the experiment addresses 10.10.1.x only: traffic of measurements does not belong on
the control network.
"""

import geni.portal as portal
import geni.rspec.emulab  # noqa: F401  (gives LANs setNoInterSwitchLinks)
import geni.rspec.pg as pg

NODES_MIN, NODES_MAX = 2, 8
STARTUP = "sudo /local/repository/setup/bootstrap.sh"
IMAGES = [
    ("urn:publicid:IDN+emulab.net+image+emulab-ops//" + name, label)
    for name, label in [("UBUNTU22-64-STD", "Ubuntu 22.04"), ("UBUNTU24-64-STD", "Ubuntu 24.04")]
]
# What an experiment interface of each carries, and thus what the figures of a run compare with.
NODE_TYPES = [
    ("m510", "m510: 8 cores, 10 GbE (Utah)"),
    ("xl170", "xl170: 10 cores, 25 GbE (Utah)"),
    ("c6525-25g", "c6525-25g: 16 cores, 25 GbE (Utah)"),
    ("c6525-100g", "c6525-100g: 24 cores, 100 GbE (Utah)"),
    ("d6515", "d6515: 32 cores, 100 GbE (Utah)"),
]


def define_parameters(context):
    """What can be chosen in the portal, in the order in which it asks."""
    kinds = portal.ParameterType
    context.defineParameter(
        "nodes",
        "Number of nodes",
        kinds.INTEGER,
        NODES_MAX,
        longDescription="Servers and clients together, %d to %d. The presets of `linerate-bench cluster run` "
        "say how many they take." % (NODES_MIN, NODES_MAX),
    )
    context.defineParameter(
        "node_type",
        "Node type",
        kinds.NODETYPE,
        "m510",
        NODE_TYPES,
        longDescription="All nodes are of one type, so that their figures can be compared.",
    )
    context.defineParameter("image", "Operating system", kinds.IMAGE, IMAGES[0], IMAGES)
    context.defineParameter(
        "same_switch",
        "All nodes at one switch",
        kinds.BOOLEAN,
        True,
        longDescription="Keeps the LAN off the links between switches, which others use too. Turn it off when the "
        "portal finds no nodes: results then depend on the neighbours.",
    )
    context.defineParameter(
        "best_effort",
        "Link without reserved bandwidth",
        kinds.BOOLEAN,
        True,
        longDescription="Neither reserves nor limits bandwidth, so that nothing shapes the traffic below the rate of the NIC.",
        advanced=True,
    )
    context.defineParameter(
        "startup",
        "Build and install at boot",
        kinds.BOOLEAN,
        True,
        longDescription="Runs setup/bootstrap.sh as root on each node at each boot; when there is nothing to do, it does nothing.",
        advanced=True,
    )


def check(context, params):
    """Refuses what the portal's forms can not."""
    if not NODES_MIN <= params.nodes <= NODES_MAX:
        sentence = "%d nodes: give %d to %d, because the addresses and presets are for that many" % (
            params.nodes,
            NODES_MIN,
            NODES_MAX,
        )
        context.reportError(portal.ParameterError(sentence, ["nodes"]))
    context.verifyParameters()


def request_nodes(request, params):
    """One LAN, and `nodes` machines with an interface in it."""
    lan = request.LAN("lan")
    lan.best_effort = params.best_effort
    # Frames carry no tag, and no other link shares the interface: tags and shared queues would be measured as well.
    lan.vlan_tagging = False
    lan.link_multiplexing = False
    if params.same_switch:
        lan.setNoInterSwitchLinks()
    for index in range(params.nodes):
        node = request.RawPC("node%d" % index)
        node.hardware_type = params.node_type
        node.disk_image = params.image
        interface = node.addInterface("lan")
        interface.addAddress(pg.IPv4Address("10.10.1.%d" % (index + 1), "255.255.255.0"))
        lan.addInterface(interface)
        if params.startup:
            node.addService(pg.Execute(shell="bash", command=STARTUP))


context = portal.Context()
define_parameters(context)
params = context.bindParameters()
check(context, params)
request_nodes(context.makeRequestRSpec(), params)
context.printRequestRSpec()
