//! In how many channels the cores of an execution provider work: what a rung keeps beyond a multiple of that
//! costs as much as the next multiple does.

use crate::config::providers::CANN;

/// Execution providers, by the name that ONNX Runtime gives them, and the number of channels that they round
/// widths up to. One that is not here has its steps measured by the latency table alone.
///
/// - CANN (Ascend) stores channels in blocks of 32 bytes an element (the layout NC1HWC0, C0 = 16 in half
///   precision, in which the provider computes unless told otherwise) and multiplies 16×16 fractals;
///   weights are padded on both sides.
/// - CPU: the steps differ from machine to machine and are measured.
/// - Of Cambricon and Kunlunxin nothing is published that could be relied on.
const ALIGNMENTS: &[(&str, usize)] = &[(CANN, 16)];

/// The number of channels that an execution provider's cores work in, where that is known.
pub fn alignment(provider: &str) -> Option<usize> {
    ALIGNMENTS.iter().find(|(name, _)| *name == provider).map(|(_, channels)| *channels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_of_an_accelerator_is_asked_of_widths() {
        assert_eq!(alignment("CANNExecutionProvider"), Some(16));
        for measured in ["CPUExecutionProvider", "MLUExecutionProvider", ""] {
            assert_eq!(alignment(measured), None, "{measured}");
        }
    }
}
