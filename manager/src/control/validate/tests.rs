//! Tables of specs and their refusals.
