// MLflow's own first page is of its tools for language models; here the experiments are.
"use strict";
// MLflow 3.17 opens the panel of its assistant, which this server has not, unless it has done so before.
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
if (!location.hash) location.replace("#/experiments?workflowType=machine_learning");
// Pages of models belong to those tools too, unless their address says otherwise.
function showModelsAsModels() {
  if (!/^#\/models\b/.test(location.hash) || /[?&]workflowType=/.test(location.hash)) return;
  location.replace(`${location.hash}${location.hash.includes("?") ? "&" : "?"}workflowType=machine_learning`);
}
showModelsAsModels();
addEventListener("hashchange", showModelsAsModels);
for (const name of ["pushState", "replaceState"]) {  // as MLflow's own links do
  const original = history[name].bind(history);
  history[name] = (...told) => { original(...told); showModelsAsModels(); };
}
