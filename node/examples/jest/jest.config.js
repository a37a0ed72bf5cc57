module.exports = { globalSetup: './test/global-setup.js', testEnvironment: 'node' };
