//! Tests of a manager as a whole.
