//! Where a request stands in its client's trace: the W3C's Trace Context, level 1
//! (<https://www.w3.org/TR/trace-context/>), as far as somebody needs it who calls nobody else.

/// What a `traceparent` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    pub trace: [u8; 16],
    /// The span that the request was sent in.
    pub span: [u8; 8],
    /// Whether the client records its part.
    pub sampled: bool,
}

/// Length of version 00: `00-<32 digits>-<16 digits>-<2 digits>`.
const LENGTH: usize = 55;

impl TraceParent {
    /// Reads the value of the header. `None` where it is not one: such a request begins a trace of its own.
    /// Versions that are not known yet are read as far as version 00 goes, which later ones must begin with.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let dash = |at: usize| bytes.get(at) == Some(&b'-');
        if !(dash(2) && dash(35) && dash(52)) {
            return None;
        }
        let [version] = hex(bytes.get(0..2)?)?;
        let trace: [u8; 16] = hex(bytes.get(3..35)?)?;
        let span: [u8; 8] = hex(bytes.get(36..52)?)?;
        let [flags] = hex(bytes.get(53..LENGTH)?)?;
        let fits = match version {
            0 => bytes.len() == LENGTH,
            0xFF => false,
            _ => bytes.len() == LENGTH || dash(LENGTH),
        };
        let is_one = fits && trace != [0; 16] && span != [0; 8];
        is_one.then_some(Self { trace, span, sampled: flags & 1 == 1 })
    }
}

/// Lower-case digits, two a byte.
fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = digits.as_chunks::<2>();
    let mut bytes = [0; N];
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = value(*high)? << 4 | value(*low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    #[test]
    fn reads_what_is_one() {
        let one = TraceParent::parse(&format!("00-{TRACE}-{SPAN}-01")).unwrap();
        assert_eq!(
            (one.trace[0], one.trace[15], one.span[1], one.sampled),
            (0x4b, 0x36, 0xf0, true)
        );
        let flags = |flags: &str| TraceParent::parse(&format!("00-{TRACE}-{SPAN}-{flags}"));
        assert_eq!(flags("00").map(|one| one.sampled), Some(false));
        // Bits that mean nothing yet.
        assert_eq!(flags("fe").map(|one| one.sampled), Some(false));
        assert_eq!(flags("ff").map(|one| one.sampled), Some(true));
        // A later version, as it is and with what it adds.
        for later in ["cc-{}-{}-01", "cc-{}-{}-01-what-comes", "01-{}-{}-01-"] {
            let text = later.replacen("{}", TRACE, 1).replacen("{}", SPAN, 1);
            assert_eq!(TraceParent::parse(&text), Some(one), "{text}");
        }
    }

    #[test]
    fn what_is_none_is_none() {
        let zeros = "0".repeat(32);
        for text in [
            String::new(),
            "00".to_owned(),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("00-{TRACE}-{SPAN}-01 "),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("00-{TRACE}-{SPAN}-0g"),
            format!("00-{TRACE}-{SPAN}"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("cc-{TRACE}-{SPAN}-01.more"),
            format!("0-{TRACE}-{SPAN}-01"),
            format!("00-{zeros}-{SPAN}-01"),
            format!("00-{TRACE}-{}-01", &zeros[..16]),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{}-{SPAN}-01", &TRACE[1..]),
            format!("00_{TRACE}_{SPAN}_01"),
            format!("00-{TRACE}ä{}-01", &SPAN[1..]),
        ] {
            assert_eq!(TraceParent::parse(&text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(?s).{0,80}") {
            let _ = TraceParent::parse(&text);
        }
    }
}
