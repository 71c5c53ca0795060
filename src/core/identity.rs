//! A peer's own identity: the key that signs its records, and the check of others' signatures.
