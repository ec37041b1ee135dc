//! Tests of promotion and demotion.
