//! Marks, numbers and ports that the parts of the packet filter and the routes agree on.

use shoal_model::network::MeshAddress;

/// The part of a mark that says what it means; the rest is a node's number.
pub(super) const KIND_MASK: u32 = 0xffff_0000;

/// On a packet, and on the connections of clients that came in here: goes through the tunnel to the node with the
/// number in the lower half. The routing table of that number leads there.
pub(super) const OUTGOING: u32 = 0x5310_0000;

/// On a connection to a published port whose backend is here.
pub(super) const PUBLISHED: u32 = 0x5311_0000;

/// On the connections that came in by the tunnel: their answers go back through it to the node with the number.
pub(super) const INCOMING: u32 = 0x5312_0000;

/// What makes an answer's packet mark of [`INCOMING`]: the bit that it has more than [`OUTGOING`] is cleared.
pub(super) const INCOMING_TO_OUTGOING: u32 = !(INCOMING ^ OUTGOING);

/// The mask under which [`OUTGOING`] and [`PUBLISHED`] are one: connections to published ports.
pub(super) const PUBLISHED_MASK: u32 = 0xfffe_0000;

/// Number of the tunnel's VXLAN network.
pub(crate) const TUNNEL_VNI: u32 = 0x0053_484f;

/// UDP port of the tunnel, within the mesh. Not the usual one of VXLAN, so that others' tunnels are none of our
/// business.
pub(crate) const TUNNEL_PORT: u16 = 21_328;

/// The number of a node in marks.
pub(super) const fn number(mesh: &MeshAddress) -> u32 {
    mesh.ipv4.to_bits() & !KIND_MASK
}
