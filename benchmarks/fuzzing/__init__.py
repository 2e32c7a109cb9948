"""A robustness campaign: hostile inputs, kills and two writers, each judged by what a person would lose by it."""
