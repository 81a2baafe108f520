//! Where the wire format of a file breaks: the protobuf decoder says what is wrong with a file, a person
//! with a hex editor or a half-finished copy also wants to know where.

/// Deepest message that is looked into: attributes of graphs within graphs.
const DEPTH: usize = 32;

/// The messages of ONNX that hold messages worth looking into (onnx.proto, IR version 8).
#[derive(Clone, Copy)]
enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    /// Fields of it are checked, what they hold is not.
    Leaf,
}

impl Kind {
    /// What the field `number` holds, if it is a message.
    fn child(self, number: u64) -> Option<Self> {
        match (self, number) {
            (Self::Model, 7) | (Self::Attribute, 6 | 11) => Some(Self::Graph),
            (Self::Graph, 1) => Some(Self::Node),
            (Self::Node, 5) => Some(Self::Attribute),
            (Self::Model, 8) | (Self::Graph, 5 | 11..=13) | (Self::Attribute, 5 | 10) => {
                Some(Self::Leaf)
            }
            (Self::Model | Self::Graph | Self::Node | Self::Attribute | Self::Leaf, _) => None,
        }
    }
}

/// Offset of the first field that cannot be read: its tag is none, or it leads beyond the end of the
/// message that it stands in. `None` where the fields that are looked at are sound.
pub(super) fn broken_at(file: &[u8]) -> Option<usize> {
    walk(Kind::Model, file, 0, 0)
}

fn walk(kind: Kind, message: &[u8], base: usize, depth: usize) -> Option<usize> {
    let mut rest = message;
    while !rest.is_empty() {
        let start = base + (message.len() - rest.len());
        let Some((number, contents, after)) = field(rest) else { return Some(start) };
        if let Some(child) = kind.child(number).filter(|_| depth < DEPTH) {
            let inside = start + (rest.len() - after.len() - contents.len());
            let broken = walk(child, contents, inside, depth + 1);
            if broken.is_some() {
                return broken;
            }
        }
        rest = after;
    }
    None
}

/// A field's number, its contents (empty unless it has a length) and what follows it.
fn field(bytes: &[u8]) -> Option<(u64, &[u8], &[u8])> {
    let (tag, rest) = varint(bytes)?;
    let number = tag >> 3;
    if number == 0 || number >= 1 << 29 {
        return None;
    }
    let skip = |count: usize| Some((number, &[][..], rest.get(count..)?));
    match tag & 7 {
        0 => varint(rest).map(|(_, after)| (number, &[][..], after)),
        1 => skip(8),
        2 => {
            let (length, rest) = varint(rest)?;
            let (contents, after) = rest.split_at_checked(usize::try_from(length).ok()?)?;
            Some((number, contents, after))
        }
        5 => skip(4),
        _ => None,
    }
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let length = bytes.iter().take(10).position(|byte| byte & 0x80 == 0)? + 1;
    let (number, rest) = bytes.split_at(length);
    let value = number.iter().rev().fold(0u64, |value, byte| value << 7 | u64::from(byte & 0x7F));
    Some((value, rest))
}

#[cfg(test)]
mod tests {
    use super::broken_at;

    /// ir_version 8, and a graph with a node that has the given bytes for contents.
    fn model(node: &[u8]) -> Vec<u8> {
        let length = u8::try_from(node.len()).unwrap();
        [&[0x08, 8, 0x3A, length + 2, 0x0A, length], node].concat()
    }

    #[test]
    fn a_sound_file_breaks_nowhere() {
        assert_eq!(broken_at(&model(&[0x0A, 1, b'x'])), None);
        assert_eq!(broken_at(b""), None);
    }

    #[test]
    fn the_innermost_field_that_cannot_be_read_is_named() {
        // The node starts at byte 6; its second field has a wire type that does not exist.
        assert_eq!(broken_at(&model(&[0x0A, 1, b'x', 0x0F])), Some(9));
        // A name that claims more bytes than its node has.
        assert_eq!(broken_at(&model(&[0x0A, 9, b'x'])), Some(6));
        // A file that ends early: the graph leads beyond the end.
        let whole = model(&[0x0A, 1, b'x']);
        assert_eq!(broken_at(&whole[..whole.len() - 1]), Some(2));
        // A field number of zero, and a number without an end.
        assert_eq!(broken_at(&[0x00]), Some(0));
        assert_eq!(broken_at(&[0x08, 8, 0xFF]), Some(2));
    }
}
