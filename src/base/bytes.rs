//! Hexadecimal text of octets, for logs, files and vectors.

use data_encoding::HEXLOWER_PERMISSIVE;

/// Lower-case hexadecimal text of `octets`.
pub fn hex(octets: &[u8]) -> String {
    HEXLOWER_PERMISSIVE.encode(octets)
}

/// The octets that `text` (hexadecimal, either case) stands for, or `None` when it is not hexadecimal.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()
}
