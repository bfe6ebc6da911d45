"use strict";
// Draws after the first paint: text and tables stand before any script has run.

requestAnimationFrame(() => setTimeout(() => {
  outline.start();
  workbench.start();
  charts.start();
  schedule.start();
  document.documentElement.dataset.ready = "true";
}, 0));
