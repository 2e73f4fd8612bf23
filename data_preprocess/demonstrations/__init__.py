"""Demonstrations made from annotated evidence: a cold start without a teacher, in any method's protocol."""
