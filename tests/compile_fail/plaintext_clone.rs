fn copy(token: &patkit::PlaintextToken) -> patkit::PlaintextToken {
    Clone::clone(token)
}

fn main() {}
