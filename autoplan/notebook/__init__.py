"""Plans in notebooks: HTML without script, rows for pandas, and figures as SVG."""
