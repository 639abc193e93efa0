"""HTML reports: one base template, and one template per report. Requires the `reports` extra."""
