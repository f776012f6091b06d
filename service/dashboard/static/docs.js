// The API's own description, drawn by Swagger UI from its pip package.
SwaggerUIBundle({ url: new URL("../openapi.json", document.currentScript.src).pathname, dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null,
  onComplete: () => document.getElementById("servers")?.setAttribute("aria-label", "Server") });
