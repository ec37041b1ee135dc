//! An agent with a fake runtime and a scripted manager, in paused time.
