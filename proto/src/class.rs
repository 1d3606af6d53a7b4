//! What an error asks for.

/// Every error of every crate falls into one of these; retry, alert and HTTP status follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// It may pass by itself: try again, with a growing pause.
    Transient,
    /// Somebody has to change a setting, a right or a server: trying again alone changes nothing.
    NeedsOperator,
    /// Bytes are not what was written, or two writers met: stop, keep the evidence.
    Corrupt,
}
