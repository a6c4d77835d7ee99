//! Black-box tests of hotslot: what they share.
