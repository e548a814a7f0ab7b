"""For tests and notebooks: gradient checks, whiteboard drawings, notebook building, the bug zoo, the exercise grader."""
