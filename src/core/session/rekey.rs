//! Rekeying: when, and the exchange (Rekey, RekeyAck, RekeyDone) over the link.
