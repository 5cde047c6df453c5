// MLflow's own first page is of its tools for language models; here the experiments are.
"use strict";
// MLflow 3.17 opens the panel of its assistant, which this server has not, unless it has done so before.
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
if (!location.hash) location.replace("#/experiments?workflowType=machine_learning");
