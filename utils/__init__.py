"""For tests and notebooks: gradient checks, drawings, notebook building, the bug zoo, the exercise grader."""
