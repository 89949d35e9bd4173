//! What an Authentication Service signs with the key of its root (X1, X2).

/// Gives a struct that ends with a `signature` its making and its check: SignWithLabel over the encoding of all the fields before.
macro_rules! signed_by_as_root {
    ($kind:ident, $label:expr) => {
        impl $kind {
            /// What is signed: the encoding up to where the signature begins.
            fn signed_octets(&self) -> Vec<u8> {
                let unsigned = Self { signature: Opaque::default(), ..self.clone() };
                let mut octets = encode(&unsigned);
                // An empty vector is a single octet.
                octets.pop();
                octets
            }

            /// The same with the signature of an AS root's key.
            #[must_use]
            pub fn sign(self, key: &SigningKey) -> Self {
                let signature = key.sign_with_label($label, &self.signed_octets()).into();
                Self { signature, ..self }
            }

            /// Whether `public_key` (an AS root's, Ed25519) signed this.
            #[must_use]
            pub fn is_signed_by(&self, public_key: &[u8]) -> bool {
                verify_with_label(public_key, $label, &self.signed_octets(), &self.signature)
            }
        }
    };
}

pub(super) use signed_by_as_root;
