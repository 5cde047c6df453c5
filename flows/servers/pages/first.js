// MLflow's own first page is of its tools for language models; here the experiments are.
"use strict";
if (!location.hash) location.replace("#/experiments?workflowType=machine_learning");
